"""What papers share: data sets, training, sweeps, plots, the step of a dry run."""
