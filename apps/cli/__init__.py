"""The program `edge`, and what its commands share."""
