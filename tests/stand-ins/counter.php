<?php
// A page that counts its visits in a redis: the server that REDIS_HOST names, else one of the names that files have.
require '/srv/redis.php';

$hosts = getenv('REDIS_HOST') ? [getenv('REDIS_HOST')] : ['redis', 'myredis', 'leader'];
foreach ($hosts as $host) {
    $count = redis($host, 'INCR', 'hits');
    if ($count !== null) {
        echo 'visit ', substr($count, 1), ', counted by ', $host, "\n";
        return;
    }
}
http_response_code(503);
echo "no redis answers\n";
