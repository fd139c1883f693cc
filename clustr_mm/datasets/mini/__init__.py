"""The mini data set: scenes drawn by a program, in the layouts of the real data sets."""
