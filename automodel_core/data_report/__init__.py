"""What the model will see of a data set, and what is wrong with it: `automodel data show`, and the
warnings at the start of a run."""
