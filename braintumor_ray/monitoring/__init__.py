"""What operators see of a job: Prometheus metrics, structured logs, a notice when it ends."""
