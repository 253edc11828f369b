"""Training on one resident base: no Ray here, so a bare script on one GPU runs the same code as a lane."""
