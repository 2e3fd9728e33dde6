"""Networks, the training loop and the model bundle. This package works without Ray and Prefect."""
