"""Results as DICOM objects that refer to the scans they were made of."""
