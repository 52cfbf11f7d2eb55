"""The training loop and the four trainings."""
