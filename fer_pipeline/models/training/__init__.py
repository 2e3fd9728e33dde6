"""The training loop in plain torch, for one process or every rank of a torch.distributed group. No Ray, no Prefect."""
