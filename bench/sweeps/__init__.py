"""The parts of sweep_models.py: the families of models, and the life that each model is taken through."""
