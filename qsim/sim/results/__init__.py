"""What a run found: requests, latencies, SLOs, goodput, summary, timeline."""
