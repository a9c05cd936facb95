"""The executors and the protocol that they share."""
