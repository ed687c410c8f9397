"""The parts of a training step: samples, teacher, methods, losses, metrics, checkpoints."""
