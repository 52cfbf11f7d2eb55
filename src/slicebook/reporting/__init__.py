"""What an evaluation found, for people: answers, charts, the page, the card, the comparison."""
