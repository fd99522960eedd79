<?php
// The voting application: `vote` puts votes into a redis, `worker` takes them from there into a database, `result` counts them.
require '/srv/redis.php';

function database() {
    while (!($connection = @pg_connect('host=db user=postgres password=postgres dbname=postgres connect_timeout=2'))) {
        sleep(1);
    }
    pg_query($connection, 'create table if not exists votes (vote text)');
    return $connection;
}

$role = getenv('ROLE');
if ($role === 'vote') {
    $answer = redis('redis', 'RPUSH', 'votes', $_GET['for'] ?? 'cats');
    http_response_code($answer === null ? 503 : 200);
    echo $answer === null ? "no redis answers\n" : "voted\n";
} elseif ($role === 'result') {
    $count = pg_fetch_row(pg_query(database(), 'select count(*) from votes'))[0];
    echo $count > 0 ? "there are votes: $count\n" : "there is no vote yet\n";
} else {
    $connection = database();
    while (true) {
        $vote = redis('redis', 'EVAL', "return redis.call('lpop', 'votes') or ''", '0');
        if ($vote === null || $vote === '') {
            sleep(1);
        } else {
            pg_query_params($connection, 'insert into votes values ($1)', [$vote]);
        }
    }
}
