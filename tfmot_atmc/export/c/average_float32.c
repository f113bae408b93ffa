static sum average(sum total, int count) { return total / (sum)count; }
