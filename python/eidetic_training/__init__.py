"""The driver of eidetic networks: models, data, training, run folders, plots and the command."""
