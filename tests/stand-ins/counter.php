<?php
// A page that counts its visits in a redis: the server that REDIS_HOST names, else `redis`, else `myredis`.
function redis($host, ...$words) {
    $stream = @fsockopen($host, 6379, $code, $text, 2);
    if (!$stream) {
        return null;
    }
    fwrite($stream, '*' . count($words) . "\r\n" . implode('', array_map(fn($w) => '$' . strlen($w) . "\r\n$w\r\n", $words)));
    $answer = trim(fgets($stream));
    fclose($stream);
    return $answer;
}
$hosts = getenv('REDIS_HOST') ? [getenv('REDIS_HOST')] : ['redis', 'myredis'];
foreach ($hosts as $host) {
    $count = redis($host, 'INCR', 'hits');
    if ($count !== null) {
        echo 'visit ', substr($count, 1), ', counted by ', $host, "\n";
        return;
    }
}
http_response_code(503);
echo "no redis answers\n";
