<?php
// One request to a redis: the answer's line, or the text of a bulk answer; null when none answers.
function redis($host, ...$words) {
    $stream = @fsockopen($host, 6379, $code, $text, 2);
    if (!$stream) {
        return null;
    }
    fwrite($stream, '*' . count($words) . "\r\n" . implode('', array_map(fn($w) => '$' . strlen($w) . "\r\n$w\r\n", $words)));
    $answer = trim(fgets($stream));
    // RESP, "Bulk strings": the length stands on a line before the text.
    if (($answer[0] ?? '') === '$') {
        $answer = trim(fgets($stream));
    }
    fclose($stream);
    return $answer;
}
