"""Classification metrics, thresholds and calibration; numpy and scikit-learn, no Ray."""
