"""DICOMweb as a source: its query (QIDO-RS), its objects as files (WADO-RS), UIDs as tokens."""
