from commands import chain, task_set

__all__ = ["chain", "task_set"]
