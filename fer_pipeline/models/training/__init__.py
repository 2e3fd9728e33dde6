"""The training loop: plain torch, on one process or on every rank of a torch.distributed group. No Ray, no Prefect."""
