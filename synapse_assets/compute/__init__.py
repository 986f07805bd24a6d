"""Where steps run: the step, its bundle, the runner that ships with it, and the targets."""
