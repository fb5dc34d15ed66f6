"""``dare bench scale``: whole runs over a shop of any size, and what they take.

Everything is real but the model and the encoder. Every stage runs in a process of its own, as under Airflow.
"""
