"""The steps from image bytes to class probabilities: decode, detect, align, classify."""
