"""The parts of M&N's trainers: loader, students, checkpoints, joint models, stopping."""
