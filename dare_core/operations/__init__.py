"""What keeps an installation going besides its runs: maintenance, alerts, forgetting, digest."""
