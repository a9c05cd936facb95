"""What the machine and its user offer: memory, huge pages, folders."""
