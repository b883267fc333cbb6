"""What the tests of several packages share: servers, clocks, browsers, and what is right."""
