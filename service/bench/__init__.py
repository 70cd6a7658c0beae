"""Rate-distortion and speed, behind `sdc bench`.  Uses the service's own pipeline; nothing in the service uses this."""
