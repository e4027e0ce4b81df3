"""From a trained run to a service: export, server, gallery and client. Only payloads pass between the two halves."""
