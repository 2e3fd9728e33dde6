"""What goes wrong in the field, done on purpose: records that kill, workers and drivers killed, nodes lost, a failing store."""
