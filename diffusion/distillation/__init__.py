"""What every distillation method shares: its interface, its settings, offline sets, distances, the registry."""
