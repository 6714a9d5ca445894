"""What a run did and what a model holds, for people: tables and figures."""
