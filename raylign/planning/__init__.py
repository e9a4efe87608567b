"""What a run needs before anything starts: memory, fit, time, and the changes that make it fit (`raylign plan`)."""
