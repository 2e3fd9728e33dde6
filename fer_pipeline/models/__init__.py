"""Networks, the training loop and the model bundle. Works where neither Ray nor Prefect is installed."""
