"""The stages of a run, a file each: pull, group, plan, generate, load, pools, report; and their order.

A stage is the function ``run`` of its file. It reads what the stage before left under the run's folder and leaves its
own there, whole or not at all; running a stage again changes nothing that was right. Stages return small JSON-able
summaries; data never goes through them.
"""
