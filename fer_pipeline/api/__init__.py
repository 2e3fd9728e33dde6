"""The Python interface: `predict` and `label`, and the labels of a run or a table as tables, files and crops."""
