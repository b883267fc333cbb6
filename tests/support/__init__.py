"""What the tests of several packages share: servers, clocks, browsers and oracles."""
