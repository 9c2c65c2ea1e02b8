"""Creating a job that resumes another one."""
