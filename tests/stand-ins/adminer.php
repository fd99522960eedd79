<?php
// Where the image `adminer` has its page.
require '/usr/share/adminer/adminer.php';
