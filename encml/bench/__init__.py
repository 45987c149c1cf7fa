"""What encml's protocols cost on this machine: seconds, rounds, bytes and memory, in one process and over TLS."""
