"""The parts a recogniser is built from: each an ordinary module with its own hook points."""
