"""RabbitMQ: topology, publishing with confirms, consuming, and settling before the ack."""
