"""Where state is kept, behind the kernel's Store port."""
