"""Readers of other people's weights, and weights that are made up; all offer `base.Checkpoint`."""
