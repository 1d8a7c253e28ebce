"""The loop that teachers, students and classifiers are trained in: batches, states, averages, costs."""
