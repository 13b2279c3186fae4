"""The parts of the demo: the tasks, the processes, what is seen of them, what happens to them, what must be true."""
