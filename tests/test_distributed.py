"""One sweep on several processes, with the numbers of a single one."""
