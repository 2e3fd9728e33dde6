"""Labelling against a real S3 server, through a proxy that can make it slow, faulty or forgetful."""
