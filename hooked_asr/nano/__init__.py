"""whisper-nano, the bundled model organism: its corpus, its training and what it shows."""
